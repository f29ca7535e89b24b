//! The API server as the node sees it: one connection whose certificate can be replaced, lists and watches, the state of the link.
