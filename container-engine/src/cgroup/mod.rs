//! Control groups, v2 and v1: where containers live, what they use, when memory ran out.
