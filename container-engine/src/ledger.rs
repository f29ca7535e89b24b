//! The one ledger of the board's capacity: admits pods, jobs and local containers by priority.
