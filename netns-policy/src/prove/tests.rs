//! The proof against the interpreter.
