"""Who is who: keys, tokens, certificates, signed requests, and kits for sites. Nothing of torch or models is here."""
