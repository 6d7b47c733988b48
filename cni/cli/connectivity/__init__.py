"""`zlayer-cni connectivity`: real packets between throwaway namespaces, compared with what `why` says."""
