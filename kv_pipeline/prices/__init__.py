"""Where prices come from: the genai-prices package, a dated supplement, and a file of the user's."""
