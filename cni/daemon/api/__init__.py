"""The doors: how plugins, the operator's tool (both at the CNI door) and ZLayer's agents speak to the daemon."""
