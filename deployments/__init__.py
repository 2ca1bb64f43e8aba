"""What Ray Serve runs. Thin: the application is made in grid_agent.compose."""
