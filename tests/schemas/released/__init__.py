"""Modules as a release had them, apart from their imports: the present code runs beside them."""
