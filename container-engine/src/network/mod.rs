//! Networks of containers: bridges, addresses, ports, names, CNI.
