//! The Node object: what the board is and how it is, told to the API server; and the lease that says it lives.
