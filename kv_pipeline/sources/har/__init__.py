"""HAR files (`*.har`): what gateways, browsers and interceptors such as mitmproxy export. README.md has the quirks."""
