"""What a classifier does on images: accuracy, attack success, robust accuracy, agreement; with intervals."""
