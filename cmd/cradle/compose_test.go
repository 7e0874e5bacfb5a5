package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFindCompose(t *testing.T) {
	config, path := t.TempDir(), t.TempDir()
	t.Setenv("PATH", path)
	put := func(elem ...string) string {
		t.Helper()
		file := filepath.Join(elem...)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if got, err := findCompose(config); err == nil {
		t.Skipf("this machine has %s", got)
	} else if !strings.Contains(err.Error(), config) {
		t.Error(err)
	}
	program := put(path, "docker-compose")
	if got, err := findCompose(config); err != nil || got != program {
		t.Errorf("%s, %v", got, err)
	}
	plugin := put(config, "cli-plugins", "docker-compose")
	if got, err := findCompose(config); err != nil || got != plugin {
		t.Errorf("%s, %v", got, err)
	}
}

func TestComposeEnv(t *testing.T) {
	got := composeEnv([]string{"A=b", "DOCKER_HOST=tcp://other", "DOCKER_CONTEXT=x", "DOCKER_TLS_VERIFY=1", "DOCKER_CONFIG=/c"}, "unix:///s")
	if want := []string{"A=b", "DOCKER_CONFIG=/c", "DOCKER_HOST=unix:///s"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
