// Makes the opacity slider and the copy buttons work, and unfolds everything for printing. The page reads without it.
(() => {
  const page = document.querySelector(".xai");
  for (const mixer of document.querySelectorAll(".mixer .control")) {
    const input = mixer.querySelector("input");
    const output = mixer.querySelector("output");
    const show = () => {
      page.style.setProperty("--opacity", input.value / 100);
      output.textContent = input.value + " %";
      input.setAttribute("aria-valuetext", input.value + " percent map");
    };
    input.addEventListener("input", show);
    show();
    mixer.hidden = false;
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      const range = document.createRange();
      range.selectNodeContents(code);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
})();
