"""What the user gave: batches, images, a loss; read the same way everywhere."""
