"""Edge and cloud: hierarchical aggregation of modules as Flower strategies."""
