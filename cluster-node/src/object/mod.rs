//! What pods refer to: config maps, secrets, services and tokens; fresh while the link is up, from the sealed store while it is not.
