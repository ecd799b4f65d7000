"""Archives of ``torch.export`` (.pt2): their weights, their graph, and what is unsafe in them."""
