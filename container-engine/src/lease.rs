//! Leases: what is held against garbage collection, by whom and until when.
