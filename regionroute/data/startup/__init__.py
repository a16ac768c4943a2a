"""What training start-up reads in place of rows and images."""
