//! The process that stays with one container: its stdio, its log, its end.
