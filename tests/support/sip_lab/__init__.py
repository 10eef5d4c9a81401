"""A laboratory of real SIP: a Kamailio that mirrors its traffic by HEP, and SIPp phones that call through it."""
