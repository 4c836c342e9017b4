"""Deep networks of neurons that spike at most once, with spike times in closed form (Wei et al., ICCV 2023)."""
