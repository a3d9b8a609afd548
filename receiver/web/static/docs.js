// Renders openapi.json. Everything is put in as text, never as HTML.

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// `code` in a description.
function prose(text) {
  const parts = (text ?? "").split("`");
  return make("span", {}, ...parts.map((part, index) => (index % 2 ? make("code", {}, part) : part)));
}

function nameOf(reference) {
  return reference.split("/").pop();
}

// A schema in a few words; a reference becomes a link to its own section.
function inWords(schema) {
  if (!schema || Object.keys(schema).length === 0) return make("span", {}, "anything");
  if (schema.$ref) return make("a", { href: `#schema-${nameOf(schema.$ref)}` }, nameOf(schema.$ref));
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return make("span", {}, ...several.flatMap((each, index) => (index ? [" or ", inWords(each)] : [inWords(each)])));
  if (schema.enum) return make("code", {}, schema.enum.join(" | "));
  if (schema.const !== undefined) return make("code", {}, JSON.stringify(schema.const));
  if (schema.type === "array") return make("span", {}, "list of ", inWords(schema.items));
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return make("span", {}, "object of ", inWords(schema.additionalProperties));
  }
  return make("span", {}, [schema.type, schema.format, limits(schema)].filter(Boolean).join(", "));
}

function limits(schema) {
  const words = { minimum: "from", maximum: "to", minLength: "at least", maxLength: "at most", default: "default" };
  return Object.entries(words).filter(([key]) => schema[key] !== undefined).map(([key, word]) => `${word} ${schema[key]}`).join(" ");
}

function table(heads, rows) {
  if (rows.length === 0) return null;
  return make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))))));
}

function section(title, content) {
  return content && make("section", {}, make("h3", {}, title), content);
}

function answers(responses) {
  return table(["Status", "Means", "Body"], Object.entries(responses).map(([status, response]) => {
    const [mediaType, body] = Object.entries(response.content ?? {})[0] ?? [];
    return [make("code", {}, status), prose(response.description), mediaType ? make("span", {}, inWords(body.schema), ` (${mediaType})`) : ""];
  }));
}

function operation(path, method, described) {
  const body = described.requestBody?.content["application/json"].schema;
  return make("details", { id: described.operationId },
    make("summary", {}, make("span", { className: "method mono" }, method.toUpperCase()), make("code", {}, path), " ", make("span", { className: "dim" }, prose(described.summary))),
    make("div", {},
      section("Parameters", table(["Name", "In", "Type", "Means"], described.parameters.map((parameter) =>
        [make("code", {}, parameter.name), parameter.in, inWords(parameter.schema), prose(parameter.description)]))),
      section("Body", body ? inWords(body) : null),
      section("Answers", answers(described.responses))));
}

function schema(name, described) {
  const required = new Set(described.required ?? []);
  const rows = Object.entries(described.properties ?? {}).map(([field, value]) =>
    [make("code", {}, field), inWords(value), required.has(field) ? "" : "optional"]);
  return make("details", { id: `schema-${name}` },
    make("summary", {}, make("code", {}, name), " ", make("span", { className: "dim" }, prose(described.description))),
    make("div", {}, table(["Field", "Type", ""], rows) ?? inWords({ ...described, description: undefined })));
}

function open(hash) {
  const target = document.getElementById(hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

async function show() {
  const main = document.getElementById("main");
  const response = await fetch("openapi.json");
  if (!response.ok) {
    main.replaceChildren(make("p", {}, `openapi.json could not be read: ${response.status}.`));
    return;
  }
  const api = await response.json();
  document.getElementById("title").replaceChildren(api.info.title, " ", make("small", {}, api.info.version));
  const operations = Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, described]) => ({ path, method, described })));
  const groups = api.tags.map(({ name }) => make("section", {}, make("h2", {}, name),
    ...operations.filter((each) => each.described.tags[0] === name).map((each) => operation(each.path, each.method, each.described))));
  const schemas = Object.entries(api.components.schemas).map(([name, described]) => schema(name, described));
  main.replaceChildren(make("p", {}, api.info.summary), ...groups, make("section", {}, make("h2", {}, "Shapes"), ...schemas));
  addEventListener("hashchange", () => open(location.hash));
  open(location.hash);
}

show();
