"""What the daemon knows of a Kubernetes cluster's Pods and Namespaces, by lists and watches."""
