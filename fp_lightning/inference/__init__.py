"""From a trained editor to an edited photo."""
