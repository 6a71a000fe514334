def docs_page(d): return ""
