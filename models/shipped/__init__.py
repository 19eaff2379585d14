"""Small diffusion models that come with sedaq, and the scripts that trained them."""
