"""The daemon's sockets: the CNI socket for plugins and the operator's tool, the overlay socket for ZLayer's agents."""
