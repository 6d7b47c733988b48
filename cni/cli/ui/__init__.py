"""`zlayer-cni ui`: a page that shows the node, for a browser on this machine."""
