"""Images: sources of sharp and blurred pairs, blur synthesis, batches."""
