/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_config.h"

#include "error.h"
#include "kubeconfig_parse.h"
#include "monotonic.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define PEM "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"
/* PEM, and "-----BEGIN KEY" */
#define PEM_BASE64                                                                                 \
	"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1Bbz0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="
#define KEY_BASE64 "LS0tLS1CRUdJTiBLRVk="

#define TOP                                                                                        \
	"apiVersion: v1\nkind: Config\ncurrent-context: here\npreferences: {}\ncontexts:\n"        \
	"- name: other\n  context: {cluster: x, user: y}\n"                                        \
	"- name: here\n  context:\n    cluster: c1\n    user: u1\n    namespace: n\n"
#define CLUSTER "clusters:\n- name: c0\n  cluster: {server: 'https://no'}\n- name: c1\n  cluster:\n"
#define SERVER	"    server: https://10.0.0.1:6443\n"
#define USER	"users:\n- name: u1\n  user:\n"

static int parse(const char *text, struct kubeconfig *k, struct error *err)
{
	return kubeconfig_parse(text, strlen(text), "/etc/kube/config", k, err);
}

TEST(inline_data_is_decoded)
{
	static const char text[] = TOP CLUSTER SERVER
		"    certificate-authority-data: " PEM_BASE64
		"\n    tls-server-name: api.internal\n"
		"    proxy-url: http://proxy:3128\n" USER "    client-certificate-data: " PEM_BASE64
		"\n    client-key-data: " KEY_BASE64 "\n    token: s3cret\n";
	struct kubeconfig k;
	struct error err = {0};

	CHECK_EQ(parse(text, &k, &err), 0);
	CHECK_STR(k.server, "https://10.0.0.1:6443");
	CHECK_STR(k.tls_server_name, "api.internal");
	CHECK_STR(k.proxy_url, "http://proxy:3128");
	CHECK_STR(k.ca.data, PEM);
	CHECK_EQ(k.ca.size, strlen(PEM));
	CHECK_STR(k.key.data, "-----BEGIN KEY");
	CHECK_STR(k.token.data, "s3cret");
	CHECK(!k.insecure);
	kubeconfig_done(&k);
	return TEST_OK;
}

TEST(paths_are_relative_to_the_kubeconfig)
{
	static const char text[] = TOP CLUSTER SERVER "    certificate-authority: pki/ca.crt\n" USER
						      "    client-certificate: /abs/me.crt\n"
						      "    client-key: me.key\n"
						      "    tokenFile: token\n    token: unused\n";
	struct kubeconfig k;
	struct error err = {0};

	CHECK_EQ(parse(text, &k, &err), 0);
	CHECK_STR(k.ca.path, "/etc/kube/pki/ca.crt");
	CHECK_STR(k.certificate.path, "/abs/me.crt");
	CHECK_STR(k.key.path, "/etc/kube/me.key");
	CHECK_STR(k.token.path, "/etc/kube/token");
	CHECK(!k.token.data);
	kubeconfig_done(&k);
	CHECK_EQ(kubeconfig_parse(text, strlen(text), "config", &k, &err), 0);
	CHECK_STR(k.ca.path, "pki/ca.crt");
	kubeconfig_done(&k);
	return TEST_OK;
}

TEST(json_is_yaml_and_data_comes_before_a_file)
{
	static const char text[] =
		"{\"current-context\":\"a\",\"contexts\":[{\"name\":\"a\",\"context\":{\"cluster\":"
		"\"b\"}}],\"clusters\":[{\"name\":\"b\",\"cluster\":{\"server\":\"HTTPS://[fd00::1]"
		"/prefix/\",\"certificate-authority\":\"x\",\"certificate-authority-data\":"
		"\"" PEM_BASE64 "\"}}],\"users\":null}";
	struct kubeconfig k;
	struct error err = {0};

	CHECK_EQ(parse(text, &k, &err), 0);
	CHECK_STR(k.server, "https://[fd00::1]/prefix");
	CHECK_STR(k.ca.data, PEM);
	CHECK(!k.ca.path && !k.token.data && !k.token.path);
	kubeconfig_done(&k);
	return TEST_OK;
}

TEST(an_error_names_file_and_field)
{
	static const struct {
		const char *text, *why;
		int code;
	} cases[] = {
		{"", "/etc/kube/config: not an object", EINVAL},
		{"- a", "not an object", EINVAL},
		{"a: [", "/etc/kube/config: line ", EINVAL},
		{"a: \xff", "/etc/kube/config: line ", EINVAL},
		{"a: b", "current-context is missing", EINVAL},
		{"current-context: [x]", "current-context is not a string (line 1)", EINVAL},
		{"current-context: x", "contexts has no \"x\"", ENOENT},
		{"current-context: x\ncontexts: y", "contexts is not a list (line 2)", EINVAL},
		{"current-context: x\ncontexts: [y]", "contexts is not a list of objects", EINVAL},
		{"current-context: x\ncontexts: [{name: x}]",
		 "contexts[x].context.cluster is missing", EINVAL},
		{"current-context: x\ncontexts: [{name: x, context: {}}]",
		 "contexts[x].context.cluster is missing", EINVAL},
		{TOP, "clusters has no \"c1\"", ENOENT},
		{TOP CLUSTER "    other: 1\n" USER "    token: a\n",
		 "clusters[c1].cluster.server is missing", EINVAL},
		{TOP CLUSTER "    server: http://a\n" USER "    token: a\n",
		 "clusters[c1].cluster.server: \"http://a\" is not https", EINVAL},
		{TOP CLUSTER "    server: https://u:p@a\n" USER "    token: a\n",
		 "a user or password", EINVAL},
		{TOP CLUSTER "    server: https://a?b\n" USER "    token: a\n", "query", EINVAL},
		{TOP CLUSTER "    server: 'https://a b'\n" USER "    token: a\n", "is no URL",
		 EINVAL},
		{TOP CLUSTER SERVER, "users has no \"u1\"", ENOENT},
		{TOP CLUSTER SERVER "    certificate-authority-data: '*'\n" USER "    token: a\n",
		 "clusters[c1].cluster.certificate-authority-data is not base64", EINVAL},
		{TOP CLUSTER SERVER "    certificate-authority-data: YQ=\n" USER "    token: a\n",
		 "is not base64", EINVAL},
		{TOP CLUSTER SERVER "    insecure-skip-tls-verify: maybe\n" USER "    token: a\n",
		 "insecure-skip-tls-verify is not true or false", EINVAL},
		{TOP CLUSTER SERVER "    insecure-skip-tls-verify: true\n"
				    "    certificate-authority: x\n" USER "    token: a\n",
		 "exclude each other", EINVAL},
		{TOP CLUSTER SERVER USER "    client-key: x\n", "without a client-certificate",
		 EINVAL},
		{TOP CLUSTER SERVER USER "    client-certificate: x\n", "without a client-key",
		 EINVAL},
		{TOP CLUSTER SERVER USER "    token: \"a\\0b\"\n", "without a NUL", EINVAL},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct kubeconfig k;
		struct error err = {0};

		CHECK_EQ(parse(cases[i].text, &k, &err), -cases[i].code);
		CHECK_HAS(err.text, cases[i].why);
	}
	return TEST_OK;
}

TEST(what_would_make_us_somebody_else_is_refused)
{
	static const char *const fields[] = {"exec: {command: aws}",
					     "auth-provider: {name: gcp}",
					     "username: a",
					     "password: a",
					     "as: admin",
					     "as-uid: '1'",
					     "as-groups: [a]",
					     "as-user-extra: {a: [b]}"};

	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		scoped_free char *text = NULL;
		struct kubeconfig k;
		struct error err = {0};

		CHECK(asprintf(&text, "%s    token: a\n    %s\n", TOP CLUSTER SERVER USER,
			       fields[i]) > 0);
		CHECK_EQ(parse(text, &k, &err), -ENOTSUP);
		CHECK_HAS(err.text, "users[u1].user.");
		CHECK_HAS(err.text, "is not supported");
	}
	return TEST_OK;
}

TEST(an_insecure_cluster_says_so)
{
	static const char text[] =
		TOP CLUSTER SERVER "    insecure-skip-tls-verify: true\n" USER "    token: a\n";
	struct kubeconfig k;
	struct error err = {0};

	CHECK_EQ(parse(text, &k, &err), 0);
	CHECK(k.insecure);
	kubeconfig_done(&k);
	return TEST_OK;
}

/* ---- files -------------------------------------------------------------------------------------
 */

struct files {
	char dir[64];
	char path[96];
};

static const char *in(struct files *f, const char *name)
{
	snprintf(f->path, sizeof(f->path), "%s/%s", f->dir, name);
	return f->path;
}

static void put(struct files *f, const char *name, const char *text)
{
	scoped_file FILE *file = fopen(in(f, name), "w");

	if (!file || fputs(text, file) < 0)
		abort();
}

static void files_new(struct files *f)
{
	strcpy(f->dir, "/tmp/kube_config_test.XXXXXX");
	if (!mkdtemp(f->dir))
		abort();
	put(f, "ca.crt", PEM);
	put(f, "token", "first\n");
}

static void files_done(struct files *f)
{
	static const char *const names[] = {"ca.crt", "token", "config", "new", "crt", "key"};

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		unlink(in(f, names[i]));
	rmdir(f->dir);
}

static const char *token_of(const struct kube_config *c)
{
	struct kube_credentials k;

	kube_config_credentials(c, &k);
	return k.token;
}

TEST(a_service_account_is_host_port_token_and_ca)
{
	struct files f;
	struct kube_config *c;
	struct kube_credentials k;
	struct error err = {0};

	files_new(&f);
	CHECK_EQ(kube_config_load_in_cluster("10.96.0.1", "443", f.dir, &c, &err), 0);
	kube_config_credentials(c, &k);
	CHECK_STR(k.server, "https://10.96.0.1:443");
	CHECK_STR(k.token, "first");
	CHECK_STR(k.ca.data, PEM);
	CHECK(!k.insecure && !k.proxy_url && k.certificate.size == 0);
	kube_config_free(c);
	CHECK_EQ(kube_config_load_in_cluster("fd00::1", "6443", f.dir, &c, &err), 0);
	kube_config_credentials(c, &k);
	CHECK_STR(k.server, "https://[fd00::1]:6443");
	kube_config_free(c);
	files_done(&f);
	return TEST_OK;
}

TEST(in_a_cluster_everything_must_be_there_and_make_sense)
{
	static const struct {
		const char *file, *text, *why;
	} cases[] = {
		{"token", "", "token: "},
		{"token", "\n \n", "the token is empty"},
		{"token", "a b", "the token holds byte 0x20"},
		{"token", "a\r\nX-Header: b", "the token holds byte 0x0d"},
		{"token", "caf\xc3\xa9", "the token holds byte 0xc3"},
		{"ca.crt", "nonsense", "certificate authority: "},
	};
	struct kube_config *c;
	struct error err = {0};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct files f;

		files_new(&f);
		put(&f, cases[i].file, cases[i].text);
		CHECK_EQ(kube_config_load_in_cluster("h", "1", f.dir, &c, &err), -EINVAL);
		CHECK_HAS(err.text, cases[i].why);
		unlink(in(&f, cases[i].file));
		CHECK_EQ(kube_config_load_in_cluster("h", "1", f.dir, &c, &err), -ENOENT);
		CHECK_HAS(err.text, cases[i].file);
		files_done(&f);
	}
	CHECK_EQ(kube_config_load_in_cluster("a b", "1", "/nowhere", &c, &err), -EINVAL);
	CHECK_HAS(err.text, "KUBERNETES_SERVICE_HOST");
	return TEST_OK;
}

TEST(without_a_cluster_and_a_kubeconfig_the_error_says_both)
{
	struct kube_config *c;
	struct error err = {0};

	unsetenv("KUBERNETES_SERVICE_HOST");
	CHECK_EQ(kube_config_load(NULL, &c, &err), -ENOENT);
	CHECK_HAS(err.text, "KUBERNETES_SERVICE_HOST");
	CHECK_HAS(err.text, "kubeconfig");
	CHECK_EQ(kube_config_load("/nowhere/config", &c, &err), -ENOENT);
	CHECK_HAS(err.text, "/nowhere/config");
	return TEST_OK;
}

TEST(a_token_is_read_again_when_its_file_changes_and_not_too_often)
{
	struct files f;
	struct kube_config *c;
	struct error err = {0};
	int64_t now = monotonic_ms() + 10000;

	files_new(&f);
	CHECK_EQ(kube_config_load_in_cluster("h", "1", f.dir, &c, &err), 0);
	kube_config_refresh(c, now);
	put(&f, "token", "second-token");
	CHECK(!kube_config_refresh(c, now + KUBE_CONFIG_STAT_MS - 1));
	CHECK_STR(token_of(c), "first");
	CHECK(kube_config_refresh(c, now + KUBE_CONFIG_STAT_MS));
	CHECK_STR(token_of(c), "second-token");
	CHECK(!kube_config_refresh(c, now + 2 * KUBE_CONFIG_STAT_MS));
	/* A projected volume swaps a symlink; for a file that is a new inode of the same size. */
	put(&f, "new", "secoND-token");
	{
		char from[96];

		snprintf(from, sizeof(from), "%s/new", f.dir);
		CHECK_EQ(rename(from, in(&f, "token")), 0);
	}
	CHECK(kube_config_refresh(c, now + 3 * KUBE_CONFIG_STAT_MS));
	CHECK_STR(token_of(c), "secoND-token");
	kube_config_free(c);
	files_done(&f);
	return TEST_OK;
}

TEST(a_reread_does_not_wait_and_says_whether_anything_is_new)
{
	struct files f;
	struct kube_config *c;
	struct error err = {0};
	int64_t now = monotonic_ms() + 10000;

	files_new(&f);
	CHECK_EQ(kube_config_load_in_cluster("h", "1", f.dir, &c, &err), 0);
	kube_config_refresh(c, now);
	CHECK(!kube_config_reread(c, now + 1));
	put(&f, "token", "second");
	CHECK(kube_config_reread(c, now + 2));
	CHECK_STR(token_of(c), "second");
	kube_config_free(c);
	files_done(&f);
	return TEST_OK;
}

TEST(what_cannot_be_read_leaves_the_old_in_use_and_is_told)
{
	struct files f;
	struct kube_config *c;
	struct error err = {0};
	int64_t now = monotonic_ms() + 10000;

	files_new(&f);
	CHECK_EQ(kube_config_load_in_cluster("h", "1", f.dir, &c, &err), 0);
	kube_config_refresh(c, now);
	CHECK(!kube_config_trouble(c));
	unlink(in(&f, "token"));
	CHECK(!kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	CHECK_STR(token_of(c), "first");
	CHECK(kube_config_trouble(c));
	CHECK_HAS(kube_config_trouble(c)->text, "token");
	/* It stays a trouble as long as it is one. */
	CHECK(!kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	CHECK(kube_config_trouble(c));
	put(&f, "token", "se\ncret");
	CHECK(!kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	CHECK_HAS(kube_config_trouble(c)->text, "0x0a");
	CHECK(!strstr(kube_config_trouble(c)->text, "cret"));
	put(&f, "token", "third");
	CHECK(kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	CHECK(!kube_config_trouble(c));
	CHECK_STR(token_of(c), "third");
	kube_config_free(c);
	files_done(&f);
	return TEST_OK;
}

TEST(a_kubeconfig_and_its_files_are_read_again)
{
	static const char text[] = TOP CLUSTER SERVER "    certificate-authority: ca.crt\n" USER
						      "    tokenFile: token\n";
	static const char moved[] =
		TOP CLUSTER "    server: https://10.0.0.2\n" USER "    token: inline\n";
	struct files f;
	struct kube_config *c;
	struct kube_credentials k;
	struct error err = {0};
	int64_t now = monotonic_ms() + 10000;

	files_new(&f);
	put(&f, "config", text);
	CHECK_EQ(kube_config_load(in(&f, "config"), &c, &err), 0);
	kube_config_credentials(c, &k);
	CHECK_STR(k.token, "first");
	CHECK_STR(k.ca.data, PEM);
	put(&f, "token", "second");
	CHECK(kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	CHECK_STR(token_of(c), "second");
	put(&f, "config", moved);
	CHECK(kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	kube_config_credentials(c, &k);
	CHECK_STR(k.server, "https://10.0.0.2");
	CHECK_STR(k.token, "inline");
	CHECK_EQ(k.ca.size, 0);
	put(&f, "config", "nonsense");
	CHECK(!kube_config_refresh(c, now += KUBE_CONFIG_STAT_MS));
	CHECK_STR(token_of(c), "inline");
	CHECK(kube_config_trouble(c));
	kube_config_free(c);
	files_done(&f);
	return TEST_OK;
}

/* Names of files are bytes, JSON is not. */
TEST(a_status_is_there_whatever_the_files_are_called)
{
	static const char text[] = TOP CLUSTER SERVER USER "    token: inline\n";
	json_t *status;
	struct files f;
	struct kube_config *c;
	struct error err = {0};

	files_new(&f);
	put(&f, "k\xfc", text);
	CHECK_EQ(kube_config_load(in(&f, "k\xfc"), &c, &err), 0);
	put(&f, "k\xfc", "nonsense");
	CHECK(!kube_config_refresh(c, monotonic_ms() + 10000));
	CHECK(kube_config_trouble(c));
	status = kube_config_status(c);
	CHECK_HAS(json_string_value(json_object_get(status, "source")), "k\xef\xbf\xbd");
	CHECK_HAS(json_string_value(json_object_get(status, "trouble")), "k\xef\xbf\xbd");
	json_decref(status);
	kube_config_free(c);
	unlink(in(&f, "k\xfc"));
	files_done(&f);
	return TEST_OK;
}

TEST(a_status_has_no_secrets)
{
	struct files f;
	struct kube_config *c;
	struct error err = {0};
	scoped_free char *text = NULL;
	json_t *status;

	files_new(&f);
	CHECK_EQ(kube_config_load_in_cluster("h", "1", f.dir, &c, &err), 0);
	status = kube_config_status(c);
	text = json_dumps(status, 0);
	json_decref(status);
	CHECK_HAS(text, "\"token\": true");
	CHECK(!strstr(text, "first"));
	kube_config_free(c);
	files_done(&f);
	return TEST_OK;
}
