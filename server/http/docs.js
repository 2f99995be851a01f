// Draws openapi.json. All text goes in as text, never as markup.
"use strict";

function element(name, options, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function referred(schema, spec) {
  return schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const union = schema.anyOf || schema.oneOf;
  if (union) return union.map(typeName).join(" | ");
  if (schema.type === "array") return `[${schema.items ? typeName(schema.items) : "any"}]`;
  return [schema.type || "any"].flat().join(" | ");
}

function bounds(schema) {
  const parts = [schema, ...(schema.anyOf || [])];
  const names = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<", maxItems: "at most", maxLength: "length ≤" };
  const found = parts.flatMap((part) => Object.keys(names).filter((key) => key in part).map((key) => `${names[key]} ${part[key]}`));
  return found.join(", ");
}

function parts(schema) {
  if (schema.$ref) return [schema];
  const inner = [schema.items, schema.contentSchema].filter(Boolean);
  return [...(schema.anyOf || schema.oneOf || []), ...inner].flatMap(parts);
}

function fields(schema, spec, seen) {
  const target = referred(schema, spec);
  if (!target.properties) {
    const inner = parts(target).filter((part) => !seen.includes(part.$ref));
    return element("div", {}, ...inner.map((part) => titled(part, spec, seen)));
  }
  const rows = Object.entries(target.properties).map(([name, field]) => {
    const required = (target.required || []).includes(name) ? " *" : "";
    const deeper = parts(field).filter((part) => !seen.includes(part.$ref));
    const notes = [bounds(field), field.description || ""].filter(Boolean).join(". ");
    const about = element("td", {}, element("code", { textContent: typeName(field) }), " ", ...prose(notes));
    about.append(...deeper.map((part) => titled(part, spec, seen)));
    return element("tr", {}, element("td", {}, element("code", { textContent: name + required })), about);
  });
  return element("table", {}, ...rows);
}

function titled(schema, spec, seen) {
  const box = element("details", {}, element("summary", { className: "quiet", textContent: typeName(schema) }));
  box.addEventListener("toggle", () => {
    if (box.open && box.childElementCount === 1) box.append(fields(schema, spec, [...seen, schema.$ref]));
  });
  return box;
}

function prose(text) {
  return text.split("`").map((part, number) => (number % 2 ? element("code", { textContent: part }) : part));
}

function curl(method, path, body) {
  const example = body && JSON.stringify(body.content["application/json"].example);
  const data = body ? ` \\\n  -H 'Content-Type: application/json' \\\n  -d '${example}'` : "";
  return `curl -X ${method.toUpperCase()} ${location.origin}${path}${data}`;
}

function operation(method, path, described, spec) {
  const head = element("summary", {}, element("span", { className: "method", textContent: method }), element("code", { textContent: path }));
  head.append(" ", element("span", { className: "quiet" }, ...prose(described.summary)));
  const box = element("details", {}, head, element("pre", { textContent: curl(method, path, described.requestBody) }));
  if (described.requestBody) {
    box.append(element("h3", { textContent: "Body" }), fields(described.requestBody.content["application/json"].schema, spec, []));
  }
  const rows = Object.entries(described.responses).map(([status, response]) => {
    const types = Object.entries(response.content || {});
    const shown = types.map(([media, content]) => element("div", {}, element("code", { textContent: media }), titled(content.schema, spec, [])));
    return element("tr", {}, element("td", { textContent: status }), element("td", {}, ...prose(response.description), ...shown));
  });
  box.append(element("h3", { textContent: "Answers" }), element("table", {}, ...rows));
  return box;
}

async function draw() {
  const spec = await (await fetch("openapi.json")).json();
  document.getElementById("about").textContent = `${spec.info.description} Version ${spec.info.version}.`;
  const byTag = new Map(spec.tags.map((tag) => [tag.name, []]));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, described] of Object.entries(methods)) {
      byTag.get(described.tags[0]).push(operation(method, path, described, spec));
    }
  }
  for (const [tag, boxes] of byTag) {
    document.getElementById("operations").append(element("h2", { textContent: tag }), ...boxes);
  }
}

draw().catch((error) => { document.getElementById("about").textContent = `openapi.json cannot be read: ${error}`; });
