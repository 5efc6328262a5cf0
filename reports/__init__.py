"""From results to pages, pictures and tables; reads the record alone and never imports torch."""
