"""One benchmark a file, pure functions from answers to outcomes."""
