"""What makes a search resume and spread over processes and machines."""
