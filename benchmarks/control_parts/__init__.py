"""What the long measurements of control share: jobs in processes of their own, and files that are whole or not there."""
