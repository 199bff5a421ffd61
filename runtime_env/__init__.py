"""What travels to the cluster, and into what environment."""
