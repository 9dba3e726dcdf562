"""Every page, plot and card."""
