"""What commands share: options, types of their values, output."""
