package dockerapi

import (
	"fmt"
	"strconv"
	"strings"
)

// The API versions served. Below 1.40 no client is left that matters; above is what the api module describes.
const (
	MinAPIVersion = "1.40"
	MaxAPIVersion = "1.56"

	minMinor = 40
	maxMinor = 56
)

// apiVersion is the version a request speaks.
type apiVersion struct{ major, minor int }

// atLeast tells whether the request speaks 1.minor or newer.
func (v apiVersion) atLeast(minor int) bool { return v.major > 1 || v.minor >= minor }

// cutVersion splits "/v1.44/info" into 1.44 and "/info". Without a prefix the version is the newest.
func cutVersion(path string) (apiVersion, string, error) {
	newest := apiVersion{1, maxMinor}
	text, ok := strings.CutPrefix(path, "/v")
	if !ok || text == "" || text[0] < '0' || text[0] > '9' {
		return newest, path, nil
	}
	text, rest, _ := strings.Cut(text, "/")
	if strings.Trim(text, "0123456789.") != "" {
		return newest, path, nil // not a version but a word that begins like one
	}
	v, err := parseVersion(text)
	if err != nil {
		return newest, "", err
	}
	switch {
	case v.major > 1 || v.minor > maxMinor:
		return newest, "", invalid(fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", text, MaxAPIVersion))
	case v.major < 1 || v.minor < minMinor:
		return newest, "", invalid(fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, "+
			"please upgrade your client to a newer version", text, MinAPIVersion))
	}
	return v, "/" + rest, nil
}

func parseVersion(text string) (apiVersion, error) {
	majorText, minorText, _ := strings.Cut(text, ".")
	if minorText == "" {
		minorText = "0"
	}
	major, err1 := strconv.Atoi(majorText)
	minor, err2 := strconv.Atoi(minorText)
	if err1 != nil || err2 != nil {
		return apiVersion{}, invalid(fmt.Sprintf("client version %s is not an API version", text))
	}
	return apiVersion{major, minor}, nil
}
