x=1
def openapi_document(): return {}
