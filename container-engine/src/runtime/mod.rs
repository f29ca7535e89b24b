//! The OCI runtime: this same file's own (`oci-runtime`, on libcontainer), runc or crun, behind one command line.
