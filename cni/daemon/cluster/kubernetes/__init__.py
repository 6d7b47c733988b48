"""The API server of Kubernetes as the cluster's store."""
