"""The engine as the server sees it: started and watched (`process`), spoken to (`client`), heard (`request_stream`)."""
