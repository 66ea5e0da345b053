// SPDX-License-Identifier: Apache-2.0

// The API server of Kubernetes, built from its published module: what test/cluster runs.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
