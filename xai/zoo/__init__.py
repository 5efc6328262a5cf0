"""The zoo: from a spec such as `torchvision:resnet50?size=320` to a `Model` with its weights and preprocessing."""
