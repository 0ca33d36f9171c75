"""Human evaluation: blinded sheets for two arms, and what people's choices come to."""
