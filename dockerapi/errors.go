package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
)

// errorStatus finds the HTTP status of an error and the class it was found by (nil when it has none).
func errorStatus(err error) (int, error) {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, nil
	case errdefs.IsNotModified(err):
		return http.StatusNotModified, errdefs.ErrNotModified
	case errdefs.IsInvalidArgument(err):
		return http.StatusBadRequest, errdefs.ErrInvalidArgument
	case errdefs.IsOutOfRange(err):
		return http.StatusBadRequest, errdefs.ErrOutOfRange
	case errdefs.IsNotFound(err):
		return http.StatusNotFound, errdefs.ErrNotFound
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized, errdefs.ErrUnauthenticated
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden, errdefs.ErrPermissionDenied
	case errdefs.IsConflict(err):
		return http.StatusConflict, errdefs.ErrConflict
	case errdefs.IsAlreadyExists(err):
		return http.StatusConflict, errdefs.ErrAlreadyExists
	case errdefs.IsFailedPrecondition(err):
		return http.StatusConflict, errdefs.ErrFailedPrecondition
	case errdefs.IsAborted(err):
		return http.StatusConflict, errdefs.ErrAborted
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented, errdefs.ErrNotImplemented
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable, errdefs.ErrUnavailable
	case errdefs.IsResourceExhausted(err):
		return http.StatusServiceUnavailable, errdefs.ErrResourceExhausted
	}
	return http.StatusInternalServerError, nil
}

// ErrorText is the message a client gets: the error's own, less its class's text where that only trails behind.
func ErrorText(err error) string {
	_, class := errorStatus(err)
	if class == nil {
		return err.Error()
	}
	return strings.TrimSuffix(err.Error(), ": "+class.Error())
}

// writeError answers with an error. Nothing may have been sent yet.
func writeError(w http.ResponseWriter, err error) {
	status, _ := errorStatus(err)
	if status == http.StatusNotModified {
		w.WriteHeader(status) // a 304 has no body
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Length")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(common.ErrorResponse{Message: ErrorText(err)})
}

// clientGone tells whether a request failed only because nobody waits for its answer any more.
func clientGone(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || errdefs.IsCanceled(err))
}

// unsupported names a feature that cradle does not have (yet), for the user to read.
func unsupported(feature string) error {
	return errdefs.ErrNotImplemented.WithMessage(feature + " is not supported by cradle yet")
}

// invalid is a 400 that says what is wrong with the request.
func invalid(message string) error { return errdefs.ErrInvalidArgument.WithMessage(message) }

// pageNotFound is docker's answer to a path it does not know.
func pageNotFound() error { return errdefs.ErrNotFound.WithMessage("page not found") }
