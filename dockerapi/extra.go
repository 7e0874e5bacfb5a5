package dockerapi

import "net/http"

// WriteError answers a request with err as every endpoint here does: for the handlers of Options.Extra.
func WriteError(w http.ResponseWriter, err error) { writeError(w, err) }
