"""The engine as the server sees it: started (`process`), watched (`watchdog`), spoken to (`client`), heard
(`request_stream`).
"""
