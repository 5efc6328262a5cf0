"""Whether explanations are true: metrics that judge the maps of attributions."""
